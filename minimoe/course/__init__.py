"""Teaching material.

    one_page   the default model on one page: forward, backward, loss and optimizer, to be read in one sitting
    lessons    reruns the lessons in notebooks/ in place
    kernel     reruns one notebook
"""
