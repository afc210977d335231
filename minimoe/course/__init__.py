"""Teaching material.

    one_page   the default model on one page: forward, backward, loss and optimizer, for reading in one sitting
    lessons    runs the lessons in notebooks/ again, in place
    kernel     runs one notebook
"""
