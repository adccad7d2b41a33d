"""A finished run as one HTML page: how good, how sure, how much of it is real."""
