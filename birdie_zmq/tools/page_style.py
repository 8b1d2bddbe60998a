"""The CSS of the pages that commands write, with a light and a dark theme."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f8fa; --card: #ffffff; --text: #1f2328; --faint: #59636e; --line: #d1d9e0;
  --good: #1a7f37; --bad: #c1121f; --mark: #ffe2b3; --link: #0b62c4; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22; --text: #e6edf3; --faint: #9aa4af;
  --line: #343b44; --good: #4cc463; --bad: #ff7b72; --mark: #5c4310; --link: #6cb2ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem; }
header, section, details { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1.25rem; margin-bottom: 1rem; }
h1 { font-size: 1.05rem; font-weight: 600; margin: 0 0 .75rem; color: var(--faint); }
h2 { font-size: 1.1rem; margin: 0; } section h2 { margin-bottom: .5rem; }
h3 { font-size: .95rem; margin: 1.25rem 0 .35rem; }
details:not([open]) { padding-block: .6rem; margin-bottom: .5rem; }
.verdict { font-size: 1.6rem; font-weight: 700; line-height: 1.2; margin: 0; }
.good { color: var(--good); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: auto 1fr; gap: .15rem .75rem; margin: 0 0 .75rem; }
dt { font-weight: 700; } dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: .9em; }
.note { color: var(--faint); margin: .25rem 0; font-size: .9rem; }
.badge { font-size: .8rem; font-weight: 600; border: 1px solid currentColor; border-radius: 99px; padding: 0 .55rem;
  white-space: nowrap; }
summary { cursor: pointer; display: flex; gap: .75rem; align-items: center; }
summary::before { content: "\\25B8"; color: var(--faint); } details[open] > summary::before { content: "\\25BE"; }
summary::-webkit-details-marker { display: none; }
.plots { display: flex; flex-wrap: wrap; gap: .5rem; margin-top: .75rem; }
picture, img { display: block; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: min(100%, 34rem); font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--faint); font-weight: 600; font-size: .85rem; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; }
a { color: var(--link); }
code { font-family: ui-monospace, monospace; font-size: .88em; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { background: var(--mark); color: inherit; border-radius: 3px; }
footer { color: var(--faint); font-size: .85rem; text-align: center; }
"""
