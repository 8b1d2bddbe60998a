"""The pictures of docs/explanation/how_scoring_works.md, drawn from the encoder and the planners on real requests."""
