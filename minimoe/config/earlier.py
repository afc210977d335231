"""Configurations that were saved before they had all of today's fields: what they meant then, they mean now."""


def completed(saved):
    """The fields of a ModelConfig as it was saved, with those that it lacks and whose default would change its meaning.

    saved: name -> value.  Returns a dict.
    """
    saved = dict(saved)
    if "group_score" not in saved and saved.get("n_groups", 1) != saved.get("top_groups", 1):
        saved["group_score"] = "paper"  # the only rule there was
    return saved
