"""`selector-server doctor`: what would keep a server from serving, found before trainers depend on it."""

from selector_server.doctor.command import run_doctor as run_doctor
