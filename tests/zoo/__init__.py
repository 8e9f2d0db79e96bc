"""Real architectures at tiny configs, built in code: to check that offloading changes no bit of any output."""
