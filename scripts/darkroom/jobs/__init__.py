"""What every job needs: a log, devices, worker processes, its history."""
