"`python -m maskbit` is the `maskbit` command."
from maskbit.use.cli import main

main()
