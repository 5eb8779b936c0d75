"""p(sources | f): one small protocol, three implementations."""

from ddfm.likelihoods.base import Likelihood, SourceDenoiser, check_likelihood
from ddfm.likelihoods.paper import Paper
from ddfm.likelihoods.released import Released
from ddfm.likelihoods.salient import Salient

LIKELIHOODS: dict[str, Likelihood] = {"salient": Salient(), "paper": Paper(), "released": Released()}

__all__ = ["LIKELIHOODS", "Likelihood", "Paper", "Released", "Salient", "SourceDenoiser", "check_likelihood"]
