"""Predictors: surrogates of what is dear to measure."""

from sartor.predictors.workload_latency import WorkloadLatency

__all__ = ["WorkloadLatency"]
