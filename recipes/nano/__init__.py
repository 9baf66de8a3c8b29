"""The nano recipe: the bundled demonstration model, trained on free sounds from Debian packages."""


class RecipeError(RuntimeError):
    """A step of the recipe cannot go on; the message is one sentence that says what to do."""
