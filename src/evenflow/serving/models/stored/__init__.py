"""Weights as files hold them: plain, in few bits, or in other people's quantised forms."""
