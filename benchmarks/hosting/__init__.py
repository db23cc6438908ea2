"""Other engines and clusters with treesnake inside; benchmarks/hosts.py runs them."""
