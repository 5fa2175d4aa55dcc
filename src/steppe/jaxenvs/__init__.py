"""Envs written in JAX: many copies are stepped inside one compiled program.

:class:`JaxEnv` is what to subclass; the others are ready to use, :class:`Gymnax` and :class:`Brax` with the
envs of the libraries that they are named by.
"""

from steppe.jaxenvs.brax import Brax as Brax
from steppe.jaxenvs.cartpole import CartPole as CartPole
from steppe.jaxenvs.catch import Catch as Catch
from steppe.jaxenvs.gymnax import Gymnax as Gymnax
from steppe.jaxenvs.hot_and_cold import HotAndCold as HotAndCold
from steppe.jaxenvs.pendulum import Pendulum as Pendulum
from steppe.jaxenvs.protocol import JaxEnv as JaxEnv
from steppe.jaxenvs.protocol import Step as Step
