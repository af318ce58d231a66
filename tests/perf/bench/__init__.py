"""The parts of scripts/bench: processes, servers, bodies, figures, and the rows of its table."""
