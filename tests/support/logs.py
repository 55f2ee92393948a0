"""What JAX logs while it compiles."""

import logging

import jax


class Compilations(logging.Handler):
    """Counts programs that XLA compiles, by what JAX logs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        message = record.getMessage()
        if message.startswith("Compiling "):
            self.names.append(message.split()[1])

    def __enter__(self):
        self.logger = logging.getLogger("jax._src.interpreters.pxla")
        self.loggers = [self.logger, logging.getLogger("jax._src.dispatch")]
        self.context = jax.log_compiles()
        self.context.__enter__()
        self.kept = [(logger, logger.propagate) for logger in self.loggers]
        for logger in self.loggers:
            logger.addHandler(self)
            logger.propagate = False
        return self

    def __exit__(self, *exception):
        for logger, propagate in self.kept:
            logger.removeHandler(self)
            logger.propagate = propagate
        self.context.__exit__(*exception)
