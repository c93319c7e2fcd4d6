"""The Python SDK and the synod command."""
