"""The book as a site: `python site/build.py` makes build/site, which any web server can serve, and no
other host is asked when it is read. Needs `pip install -e '.[site]'`, and npm for MathJax and
onnxruntime-web, which are fetched once, into build/npm."""
import argparse, json, shutil, subprocess, sys
from pathlib import Path
import pages
from conf import cfg

HERE, BUILD = Path(__file__).parent, pages.ROOT/'build'
SOURCE, ASSETS, SITE, NPM = (BUILD/d for d in ('site-source', 'site-assets', 'site', 'npm'))
PACKAGES = 'mathjax@3.2.2', 'onnxruntime-web@1.30.0'
PLAY = 'With nothing installed: [flip bits and see the picture change](play.md), here in the page.'
RUNTIME = 'onnxruntime-web/dist'
VENDORED = ('mathjax/es5/tex-svg.js', f'{RUNTIME}/ort.wasm.min.mjs',
            f'{RUNTIME}/ort-wasm-simd-threaded.mjs', f'{RUNTIME}/ort-wasm-simd-threaded.wasm')


def vendor(folder):
    "Copy what browsers need of the npm packages, which are fetched when they are not here yet."
    modules = NPM/'node_modules'
    if not all((modules/f).exists() for f in VENDORED):
        NPM.mkdir(parents=True, exist_ok=True)
        quiet = '--no-save', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'
        try: subprocess.run(['npm', 'install', '--prefix', str(NPM), *quiet, *PACKAGES], check=True)
        except (OSError, subprocess.CalledProcessError):
            sys.exit(f'npm is needed, and a network once, to get {" and ".join(PACKAGES)}.')
    folder.mkdir(parents=True)
    for f in VENDORED: shutil.copy(modules/f, folder)


def write_pages(*own): # names of pages that are no notebooks
    "The notebooks as the site shows them, the pages of its own, and pictures."
    url = f'{cfg["git_url"]}/blob/{cfg["branch"]}'
    def text(id, source): return dict(cell_type='markdown', id=id, metadata={}, source=source)
    for path in pages.NOTEBOOKS:
        nb, out = pages.page(path), SOURCE/path.relative_to(pages.NBS)
        for c in nb['cells']:
            if c['cell_type'] == 'markdown': c['source'] = pages.outside(c['source'], path, url)
        if path.stem == 'index':
            nb['cells'].insert(1, text('play', PLAY))
            nb['cells'].append(text('contents', pages.toctrees(own)))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(nb))
    shutil.copytree(pages.NBS/'images', SOURCE/'images')
    for name in own: shutil.copy(HERE/f'{name}.md', SOURCE)


def write_models(folder):
    "What the explorer runs and shows: ONNX files, a picture of each class, and a still one."
    import torch
    from maskbit import Generator, Shapes, Tokenizer
    from maskbit.base.storage import write_picture
    from maskbit.studies.flips import flip
    from maskbit.use.draw import labelled
    from maskbit.use.export import export_onnx
    tok, gen = Tokenizer.from_pretrained('shapes'), Generator.from_pretrained('shapes')
    export_onnx([tok, gen], folder/'models')
    images, labels = Shapes(split='validation').batch(torch.arange(200))
    names = gen.config.class_names
    first = torch.stack([images[labels == k][0] for k in range(len(names))])
    (folder/'pictures').mkdir()
    for name, image in zip(names, first):
        write_picture(folder/f'pictures/{name}.png', image[None], padding=0)
    tokens = tok.encode(first)
    rows = torch.stack([tokens, *(flip(tokens, b) for b in range(tok.config.bits))], 1)
    still = labelled(tok.decode(rows.flatten(0, 1)), names, rows.shape[1])
    still.save(folder/'bits.png')


def build():
    for folder in (SOURCE, ASSETS, SITE): shutil.rmtree(folder, ignore_errors=True)
    vendor(ASSETS/'vendor')
    write_models(ASSETS)
    write_pages('play')
    strict = '-W', '--keep-going', '-q', '-E'       # a warning is an error
    where = '-c', HERE, '-d', BUILD/'doctrees', SOURCE, SITE
    subprocess.run([sys.executable, '-m', 'sphinx', '-b', 'html', *strict, *map(str, where)], check=True)
    print(f'The site is in {SITE}: python -m http.server --directory {SITE}')


if __name__ == '__main__':
    argparse.ArgumentParser(description=' '.join(__doc__.split())).parse_args()     # --help, and no words
    build()
