"""A second service like the first."""

import steady

if __name__ == "__main__":
    steady.main()
