"""What can go wrong while a model is made, each told to the user in one sentence.

OperatorError (serving.errors)
└── TrainingError
    ├── RecipeError       a setting that does not exist, or a value it does not take
    ├── DataError         the examples: the message names the folder or the file
    ├── RunError          the run directory: not there, not empty, or made by another recipe
    ├── CheckpointError   a checkpoint that cannot be exported; the message names why
    ├── ParityError       the exported graph is not the model; the message names the failing check
    └── PublishRefused    what was exported may not go into this repository
"""

from __future__ import annotations

from serving.errors import OperatorError


class TrainingError(OperatorError):
    pass


class RecipeError(TrainingError):
    pass


class DataError(TrainingError):
    pass


class RunError(TrainingError):
    pass


class CheckpointError(TrainingError):
    pass


class ParityError(TrainingError):
    pass


class PublishRefused(TrainingError):
    pass
