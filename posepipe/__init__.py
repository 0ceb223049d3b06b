"""Human-pose regressors on Ray: prepare, train, tune and score on MPII-shaped data."""

__version__ = "0.1.0"
