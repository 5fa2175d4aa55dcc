"""Envs written in JAX: many copies are stepped inside one compiled program.

:class:`JaxEnv` is what to subclass; the others are ready to use.
"""

from steppe.jaxenvs.cartpole import CartPole as CartPole
from steppe.jaxenvs.catch import Catch as Catch
from steppe.jaxenvs.hot_and_cold import HotAndCold as HotAndCold
from steppe.jaxenvs.pendulum import Pendulum as Pendulum
from steppe.jaxenvs.protocol import JaxEnv as JaxEnv
from steppe.jaxenvs.protocol import Step as Step
