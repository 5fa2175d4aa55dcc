"""Envs written in JAX: many copies are stepped inside one compiled program.

:class:`JaxEnv` is what to subclass; the others are ready to use.
"""

from steppe.jaxenvs.cartpole import CartPole as CartPole
from steppe.jaxenvs.protocol import JaxEnv as JaxEnv
