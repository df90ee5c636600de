"""VHDX files (MS-VHDX version 1), read and written by code of our own: ``layout`` has the bytes."""
