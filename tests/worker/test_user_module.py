"""The page that a user edits: what it may do, and how its errors read."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import birdie_zmq.models
from birdie_zmq.errors import BirdieError, ModelLoadError, UnknownModelTag, UserModuleError
from birdie_zmq.types import ModelSpec
from birdie_zmq.worker.user_module import BUILT_IN, import_user_module

SPEC = ModelSpec(tag="mine", arguments='{"size": 3}')
GOOD_PAGE = """
def load_model(model_tag, **kwargs):
    return "model", model_tag, kwargs

def load_tokenizer(model_tag, **kwargs):
    return "tokenizer", model_tag, kwargs
"""


@pytest.fixture(autouse=True)
def _imports_are_undone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A model process imports one page and ends; a test must not leave its page behind."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(sys.modules)
    yield
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
            if name in before:
                sys.modules[name] = before[name]


def write(folder: Path, text: str, name: str = "api.py") -> str:
    """A page in a folder; its path."""
    path = folder / name
    path.write_text(text)
    return str(path)


def traceback_of(error: BirdieError, *expected: str) -> None:
    """Hold that an error's traceback shows what a page's author needs, and nothing of how we got there."""
    assert error.remote_traceback is not None
    for text in expected:
        assert text in error.remote_traceback
    assert "api_page.py" not in error.remote_traceback
    assert "importlib" not in error.remote_traceback


# --- Pages that work -------------------------------------------------------------------------------------------------


def test_a_pages_functions_are_called_with_the_tag_and_its_arguments(tmp_path: Path) -> None:
    page = import_user_module(write(tmp_path, GOOD_PAGE))
    assert page.load_model(SPEC) == ("model", "mine", {"size": 3})
    assert page.load_tokenizer(SPEC) == ("tokenizer", "mine", {"size": 3})


def test_a_page_is_known_by_its_path_and_its_text(tmp_path: Path) -> None:
    page = import_user_module(write(tmp_path, GOOD_PAGE, name="my_models.py"))
    assert page.name == str(tmp_path.resolve() / "my_models.py")
    assert page.sha256 == hashlib.sha256(GOOD_PAGE.encode()).hexdigest()


def test_a_page_may_be_named_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD_PAGE)
    monkeypatch.chdir(tmp_path)
    assert import_user_module("api.py").name == str(tmp_path.resolve() / "api.py")


def test_a_page_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "SIZE = 7", name="beside_this_page.py")
    page = import_user_module(write(tmp_path, GOOD_PAGE + "from beside_this_page import SIZE\n"))
    assert page.module.SIZE == 7


def test_a_page_may_import_what_lies_beside_it_when_it_is_called(tmp_path: Path) -> None:
    write(tmp_path, "SIZE = 7", name="beside_this_page.py")
    text = """
def load_model(model_tag, **kwargs):
    import beside_this_page
    return beside_this_page.SIZE

load_tokenizer = load_model
"""
    assert import_user_module(write(tmp_path, text)).load_model(SPEC) == 7


def test_a_page_is_the_module_that_its_classes_name(tmp_path: Path) -> None:
    page = import_user_module(write(tmp_path, GOOD_PAGE + "class Thing: ...\n"))
    assert sys.modules[page.module.Thing.__module__] is page.module


def test_without_a_page_the_built_in_one_serves() -> None:
    page = import_user_module(None)
    assert (page.name, page.module) == (BUILT_IN, birdie_zmq.models)
    assert page.sha256 == hashlib.sha256(Path(birdie_zmq.models.__file__).read_bytes()).hexdigest()


# --- Pages that cannot be imported -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.py", "."], ids=["missing", "folder"])
def test_a_page_must_be_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserModuleError, match="no api page at"):
        import_user_module(str(tmp_path / name))


def test_a_page_must_be_python(tmp_path: Path) -> None:
    with pytest.raises(UserModuleError, match="no Python file"):
        import_user_module(write(tmp_path, GOOD_PAGE, name="api.txt"))


def test_a_syntax_error_is_shown_where_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD_PAGE + "def broken(:\n")
    with pytest.raises(UserModuleError, match="raised SyntaxError") as raised:
        import_user_module(path)
    traceback_of(raised.value, f'File "{path}", line 7', "def broken(:")


def test_an_import_that_raises_is_shown_where_it_does(tmp_path: Path) -> None:
    path = write(tmp_path, 'WEIGHTS = {}["layer.0"]\n')
    with pytest.raises(UserModuleError, match=r"raised KeyError: 'layer\.0'") as raised:
        import_user_module(path)
    traceback_of(raised.value, f'File "{path}", line 1, in <module>', 'WEIGHTS = {}["layer.0"]', "KeyError: 'layer.0'")


def test_an_import_beside_the_page_that_raises_is_shown_with_how_it_was_reached(tmp_path: Path) -> None:
    beside = write(tmp_path, "import no_such_package\n", name="beside_this_page.py")
    path = write(tmp_path, "import beside_this_page\n")
    with pytest.raises(UserModuleError, match="ModuleNotFoundError: No module named 'no_such_package'") as raised:
        import_user_module(path)
    traceback_of(raised.value, f'File "{path}", line 1', f'File "{beside}", line 1', "import no_such_package")


def test_a_page_that_exits_is_an_error_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(UserModuleError, match="raised SystemExit: 3"):
        import_user_module(write(tmp_path, "raise SystemExit(3)\n"))


def test_an_interrupt_during_the_import_is_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        import_user_module(write(tmp_path, "raise KeyboardInterrupt\n"))


@pytest.mark.parametrize("name", ["load_model", "load_tokenizer"])
@pytest.mark.parametrize("instead", ["del {}\n", "{} = None\n"], ids=["missing", "no-function"])
def test_a_missing_function_is_named_with_its_signature(tmp_path: Path, name: str, instead: str) -> None:
    path = write(tmp_path, GOOD_PAGE + instead.format(name))
    with pytest.raises(UserModuleError) as raised:
        import_user_module(path)
    assert raised.value.message == f"{Path(path).resolve()} has no function {name}(model_tag, **kwargs)"


# --- Pages whose functions raise -------------------------------------------------------------------------------------

RAISING_PAGE = """
def read(path):
    raise OSError(f"no weights at {path}")

def load_model(model_tag, **kwargs):
    return read("/nowhere")

load_tokenizer = load_model
"""


def test_load_model_that_raises_is_shown_where_it_does(tmp_path: Path) -> None:
    path = write(tmp_path, RAISING_PAGE)
    page = import_user_module(path)
    with pytest.raises(ModelLoadError) as raised:
        page.load_model(SPEC)
    assert raised.value.message == f"load_model('mine', …) of {page.name} raised OSError: no weights at /nowhere"
    traceback_of(
        raised.value,
        f'File "{path}", line 6, in load_model\n    return read("/nowhere")',
        f'File "{path}", line 3, in read',
        "OSError: no weights at /nowhere",
    )


def test_load_tokenizer_that_raises_is_named(tmp_path: Path) -> None:
    page = import_user_module(write(tmp_path, RAISING_PAGE))
    with pytest.raises(ModelLoadError, match=r"load_tokenizer\('mine'\) of .* raised OSError"):
        page.load_tokenizer(ModelSpec(tag="mine"))


def test_the_cause_of_an_error_is_shown_too(tmp_path: Path) -> None:
    text = """
def load_model(model_tag, **kwargs):
    try:
        return {}["layer.0"]
    except KeyError as error:
        raise ValueError("a damaged checkpoint") from error

load_tokenizer = load_model
"""
    page = import_user_module(write(tmp_path, text))
    with pytest.raises(ModelLoadError, match="a damaged checkpoint") as raised:
        page.load_model(SPEC)
    traceback_of(raised.value, 'return {}["layer.0"]', "direct cause", "ValueError: a damaged checkpoint")


def test_a_keyword_that_a_page_does_not_take_is_named(tmp_path: Path) -> None:
    page = import_user_module(write(tmp_path, "def load_model(model_tag): ...\nload_tokenizer = load_model\n"))
    with pytest.raises(ModelLoadError, match=r"raised TypeError.*'size'"):
        page.load_model(SPEC)


def test_an_error_of_this_package_passes_as_it_is(tmp_path: Path) -> None:
    text = "from birdie_zmq import models\nload_model, load_tokenizer = models.load_model, models.load_tokenizer\n"
    page = import_user_module(write(tmp_path, text))
    with pytest.raises(UnknownModelTag, match="'mine'"):
        page.load_model(SPEC)


@pytest.mark.parametrize(
    ("raised", "expected"), [("SystemExit(1)", ModelLoadError), ("KeyboardInterrupt", KeyboardInterrupt)]
)
def test_an_exit_is_an_error_and_an_interrupt_is_one(
    tmp_path: Path, raised: str, expected: type[BaseException]
) -> None:
    page = import_user_module(
        write(tmp_path, f"def load_model(*args, **kwargs):\n    raise {raised}\nload_tokenizer = print\n")
    )
    with pytest.raises(expected):
        page.load_model(SPEC)
