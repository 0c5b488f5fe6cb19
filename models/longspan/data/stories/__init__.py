"""bAbI-style stories: facts, a question, an answer of one word, for the twenty kinds of Weston et al. 2015.

They are drawn here, in words of our own: figures on them and figures on the published stories do not compare.
"""

from longspan.data.stories.dataset import (
    ANSWERS,
    TASKS,
    WORDS,
    StoryCollator,
    StoryDataset,
    encode_story,
    make_story,
)
from longspan.data.stories.story import Story, words_of

__all__ = [
    "ANSWERS",
    "TASKS",
    "WORDS",
    "Story",
    "StoryCollator",
    "StoryDataset",
    "encode_story",
    "make_story",
    "words_of",
]
