"""From the command line to a run: arguments, jobs, devices, names, errors for the user."""
