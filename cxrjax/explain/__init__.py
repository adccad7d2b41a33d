"""Why a classifier says what it says: maps of evidence, and the means to know if they hold."""
