"""Configurations that were saved before they had all of today's fields: what they meant then, they mean now."""

from minimoe.moe import routers


def completed(saved):
    """The fields of a ModelConfig as it was saved, with those that it lacks and whose default would change its meaning.

    saved: name -> value.  Returns a dict.
    """
    saved = dict(saved)
    if "group_score" not in saved and saved.get("n_groups", 1) != saved.get("top_groups", 1):
        saved["group_score"] = "paper"  # the only rule there was
    router = routers.ROUTERS.get(saved.get("router"))
    if "balance_first" not in saved and router and router.FACTS.first_choices:
        saved["balance_first"] = False  # all choices counted, whatever the router
    return saved
