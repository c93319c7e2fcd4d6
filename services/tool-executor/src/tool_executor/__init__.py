"""Carries out tool calls: granted, validated, limited, sandboxed, never twice blindly."""
