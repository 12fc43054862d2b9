"""Few of our own functions stand between a command and the model's forward pass: at most 6 in training and 8 in scoring."""

from __future__ import annotations

TRAINING, SCORING = 6, 8
