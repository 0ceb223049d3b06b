"""Human-pose regressors on Ray: prepare, train, tune and score on MPII-shaped data."""
