"""ONNX files: conversion, and passes over them."""
