"""Tests of data sets and scoring."""
