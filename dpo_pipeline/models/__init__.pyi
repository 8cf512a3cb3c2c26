from .logps import Scored as Scored, logps as logps
