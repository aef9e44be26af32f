"""Notebooks as pages of the site: what readers need not see is left out, and names lead to their
definitions."""
import ast, json, re
from pathlib import Path

ROOT = Path(__file__).parent.parent
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb')
                   if not any(part.startswith('.') for part in p.relative_to(NBS).parts))


def read(path):
    "The cells of a notebook, their sources as one text each."
    cells = json.loads(path.read_text())['cells']
    return [c | {'source': ''.join(c['source'])} for c in cells]


def docname(path): return str(path.relative_to(NBS).with_suffix(''))


# The reading order: parts as the index lists them, in each the order of the files, which is that of "Next"

def reading_order():
    "[(title of a part, [notebooks])], first those of no part."
    text = '\n'.join(c['source'] for c in read(NBS/'index.ipynb'))
    titles = re.findall(r'^\*\*(.+?)\*\* \(`(\w+)`\)', text, re.M)
    alone = [p for p in NOTEBOOKS if p.parent == NBS and p.stem != 'index']
    return [('', alone), *((title, [p for p in NOTEBOOKS if p.parent.name == part])
                           for title, part in titles)]


def toctrees(own): # names of pages that are no notebooks, to stand before the parts
    "The contents on the left, as the text of a cell."
    blocks = []
    for title, paths in reading_order():
        names = [*([] if title else own), *map(docname, paths)]
        caption = f':caption: "{title}"\n' if title else ''
        blocks.append(f'```{{toctree}}\n:hidden:\n{caption}\n' + '\n'.join(names) + '\n```')
    return '\n\n'.join(blocks)


# Definitions

def defined(code):
    "Names that a cell defines; a method that is patched in is Class.method."
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            patched = any('patch' in ast.unparse(d) for d in node.decorator_list)
            owner = node.args.args[0].annotation if patched and node.args.args else None
            yield f'{ast.unparse(owner)}.{node.name}' if owner else node.name
        if isinstance(node, ast.ClassDef):
            for m in node.body:
                if isinstance(m, ast.FunctionDef): yield f'{node.name}.{m.name}'
        if isinstance(node, ast.Assign):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name))


def module_of(cells):
    "PART.NAME that a notebook exports to by default, or None."
    found = re.search(r'^#\| default_exp (\S+)', '\n'.join(c['source'] for c in cells), re.M)
    return found and found[1]


def exported(cell, module):
    "The module that a cell is exported to, or None."
    found = re.match(r'#\| exports?(?: (\S+))?$', cell['source'].partition('\n')[0])
    return found and (found[1] or module)


def definitions():
    "{(PART.NAME of the module, name): (page, anchor)} of all that the notebooks export."
    out = {}
    for path in NOTEBOOKS:
        module = module_of(cells := read(path))
        for cell in cells:
            if cell['cell_type'] == 'code' and (to := exported(cell, module)):
                for name in defined(cell['source']):
                    if '__' not in name: out.setdefault((to, name), (docname(path), name))
    return out


def code_of(cells):
    "The syntax trees of the cells that are Python."
    return [ast.parse(c['source']) for c in cells
            if c['cell_type'] == 'code' and not c['source'].lstrip().startswith(('%', '!'))]


def parameters(trees):
    "Names of the parameters of functions, and of fields, which are those of dataclasses."
    nodes = [n for tree in trees for n in ast.walk(tree)]
    fields = [n.target for c in nodes if isinstance(c, ast.ClassDef)
              for n in c.body if isinstance(n, ast.AnnAssign)]
    return {n.arg for n in nodes if isinstance(n, ast.arg)} | {ast.unparse(f) for f in fields}


def in_scope(path, known):
    """{name: (page, anchor)} that a notebook imports from the package or defines itself, and never
    uses for a parameter."""
    module, scope = module_of(cells := read(path)), {}
    scope |= {name: to for (of, name), to in known.items() if of == module}
    trees = code_of(cells)
    for node in (n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)):
        of = (node.module or '').removeprefix('maskbit.')
        here = [a for a in node.names if (of, a.name) in known]
        scope |= {a.asname or a.name: known[of, a.name] for a in here}
    taken = parameters(trees)
    return {name: to for name, to in scope.items() if name not in taken}


def everywhere(known):
    """{name: (page, anchor)} of public names that are defined once in the book, `Class.method` among
    them, and can mean nothing else: no part or module, no parameter and no plain word."""
    trees = [tree for path in NOTEBOOKS for tree in code_of(read(path))]
    words = {word for module, _ in known for word in module.split('.')}
    names = [name for _, name in known]
    taken = words | parameters(trees) | {n for n in names if names.count(n) > 1}
    return {name: to for (_, name), to in known.items()
            if name not in taken and re.match(r'[a-z]*[A-Z_.]', name) and name[0] != '_'}


# Pages

def page(path):
    "The notebook (a dictionary) that the site shows."
    module, cells, alt = module_of(every := read(path)), [], ''
    for cell in every:
        lines = cell['source'].splitlines()
        said = [line[2:].split()[0] for line in lines if line.startswith('#|')]
        code = '\n'.join(line for line in lines if not line.startswith('#|')).strip('\n')
        if 'hide' in said or not code: continue
        if cell['cell_type'] == 'code' and exported(cell, module):
            names = [n for n in defined(code) if '__' not in n]
            if names: cells.append(anchors(names, cell['id']))
        if cell['cell_type'] == 'markdown': alt = caption(code)
        meta = {'mystnb': {'image': {'alt': alt}}} | ({'tags': ['remove-input']} if 'echo:' in said else {})
        cells.append(cell | {'source': code, 'metadata': meta})
    language = {'name': 'python', 'pygments_lexer': 'python'}
    return dict(cells=cells, nbformat=4, nbformat_minor=5, metadata={'language_info': language})


SENTENCE = re.compile(r'.{,24}.*?(?:(?<!App)(?<!Sec)[.?!](?=\s)|$)', re.S)


def caption(text):
    "What a text says of the picture below it: its last paragraph begins with that; or a heading."
    prose = [p for p in re.split(r'\n\s*\n', text) if re.match(r'[\w`"\[(]|\*+\w', p)]
    said = SENTENCE.match((prose or re.findall(r'^#+ (.+)', text, re.M))[-1])[0]
    return re.sub(r'[*`$]|\[(.*?)\]\(.*?\)', r'\1', ' '.join(said.split()))


def anchors(names, id):
    "A cell without looks that links to definitions lead to."
    spans = ''.join(f'<span id="{name}" class="definition"></span>' for name in names)
    return dict(cell_type='markdown', id=f'{id}-names', metadata={}, source=spans)


def outside(text, path, url):
    "A text whose links to files that are no pages lead to the repository."
    def lead(found):
        link, _, fragment = found[1].partition('#')
        target = (path.parent/link).resolve()
        if not link or re.match(r'\w+:', link) or not target.is_relative_to(ROOT): return found[0]
        if target.is_relative_to(NBS) and target.suffix in ('.ipynb', '.png', '.jpg', '.svg'): return found[0]
        return f']({url}/{target.relative_to(ROOT)}{"#" * bool(fragment)}{fragment})'
    return re.sub(r'\]\(([^)\s]+)\)', lead, text)


# Links in the finished page

CODE = re.compile(r'(<span class="o">\.</span>)?(<span class="n">(\w+)</span>)(?!<span class="o">=</span>)')
WORD = re.compile(r'(?<!">)<code class="docutils literal notranslate">'
                  r'<span class="pre">([\w.]+)(?:\(\))?</span></code>')


def linked(body, here, scope, known): # HTML; page; names in its code; names in any text
    "The page with the names that are known as links to where they are defined."
    def a(to, text):
        where, anchor = to
        page = '' if where == here else '../' * here.count('/') + f'{where}.html'
        return f'<a class="name" href="{page}#{anchor}">{text}</a>'

    def in_code(found): # neither attributes nor keywords
        dot, text, name = found.groups()
        return found[0] if dot or name not in scope else a(scope[name], text)

    def in_text(found):
        name = found[1].removeprefix('maskbit.')
        to = scope.get(name) or known.get(name)
        return a(to, found[0]) if to else found[0]

    return WORD.sub(in_text, CODE.sub(in_code, body))
