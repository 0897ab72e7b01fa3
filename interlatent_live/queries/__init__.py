"""Asking a running correlator: typed questions and answers, a client, a REST face.

``messages`` are the questions and answers, ``codec`` their frames, ``answering`` turns a question
into an answer without I/O, ``client`` asks over a socket, ``rest`` over HTTP. Nothing here imports
torch, and the client imports no statistics.
"""

from interlatent_live.queries.client import StatisticsClient

__all__ = ["StatisticsClient"]
