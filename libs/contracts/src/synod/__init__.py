"""The published language of Synod: gRPC contracts and events, one package per service."""
