"""The pictures of docs/explanation/how_scoring_works.md, drawn from what the encoder and the planners really do with real requests."""
