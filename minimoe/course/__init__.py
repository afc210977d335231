"""Teaching material.

    lessons   runs the lessons in notebooks/ again, in place
"""
