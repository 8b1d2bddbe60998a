"""The lm_eval side: model class, model arguments, generation kwargs, chat templates, response cache and progress bar."""
