"""Configurations that were saved before all of today's fields existed: they keep their meaning."""

from minimoe.moe import routers


def completed(saved):
    """The saved fields of a ModelConfig, with missing fields added where today's default would change the meaning.

    saved: name -> value.  Returns a dict.
    """
    saved = dict(saved)
    if "group_score" not in saved and saved.get("n_groups", 1) != saved.get("top_groups", 1):
        saved["group_score"] = "paper"  # the only rule at that time
    router = routers.ROUTERS.get(saved.get("router"))
    if "balance_first" not in saved and router and router.FACTS.first_choices:
        saved["balance_first"] = False  # all choices counted, whatever the router
    return saved
