"""REST: one router per kind of resource, one form of answers, one form of problems."""
