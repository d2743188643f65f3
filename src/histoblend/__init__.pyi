from histoblend.data.audit.flags import audit as audit
from histoblend.features.handcrafted.transformer import HandcraftedFeatures as HandcraftedFeatures
from histoblend.features.networks.embeddings import Embeddings as Embeddings
from histoblend.pipelines.predict.in_memory import Predictor as Predictor
from histoblend.pipelines.run_tables import read_run as read_run

__version__: str
