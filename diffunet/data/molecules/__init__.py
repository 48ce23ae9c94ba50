"""Molecules: atoms in files, their chemistry, and volumes of both."""
