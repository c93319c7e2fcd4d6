"""A model provider that is no model: it speaks the wire formats of OpenAI, Anthropic and Gemini and follows a written script.

It stands in for a real provider in tests, demonstrations and benchmarks. Every answer says that it comes from a
simulator (`system_fingerprint: "synod-simulator"`, header `x-synod-simulator: true`), and every request is counted,
so that what the platform booked can be compared with what the provider saw.

Its model `sim-1` is deterministic. It carries out the numbered steps in the system or developer instructions, one
round of tool calls per step, and then answers; `script.py` defines the language. Start it with `python -m
provider_simulator --port 7199`, or inside a test with `provider_simulator.testing.running_simulator()`.
"""
