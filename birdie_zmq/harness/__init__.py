"""The lm_eval side: the model class, its arguments, generation kwargs, chat templates, response cache and progress bar."""
