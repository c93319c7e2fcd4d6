"""Calls to model providers: one adapter over HTTP, one dialect per wire format, one profile per kind of model.

`provider.Provider` is the seam the rest of the gateway sees. `http.HttpProvider` implements it once, over
`transport` (HTTP/1.1 by `pool` and `connection`) and `sse`; what differs between providers is a `dialect.Dialect`
(pure functions between our types and wire bytes) and a `profile.CapabilityProfile` (which parameters a model takes,
and what to do with the others). `catalog` joins them for the providers we know.
"""
