"""The nano recipe: the bundled demonstration model, trained on free sounds from Debian packages."""


class RecipeError(RuntimeError):
    """A step of the recipe cannot continue; the message is one sentence with the remedy."""
