"""A service that says what is wrong and ends."""

import sys

sys.exit("SYNOD_MEANING is not set")
