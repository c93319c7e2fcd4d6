"""A service that is never ready."""

import steady

if __name__ == "__main__":
    steady.IS_READY = False
    steady.main()
