"How Sphinx makes the site of the pages that build.py has prepared."
import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import pages  # noqa: E402

settings = ConfigParser(delimiters=['='])
settings.read(HERE.parent/'settings.ini', encoding='utf-8')
cfg = settings['DEFAULT']

project, author, copyright = cfg['title'], cfg['author'], cfg['copyright'].partition(',')[0]
version = release = cfg['version']
language = 'en'
extensions = ['myst_nb', 'sphinx.ext.mathjax']
nb_execution_mode = 'off'                    # outputs are shown as they are committed
nb_merge_streams = True                      # what a cell prints is one box
nb_render_markdown_format = 'myst'           # an output may be a table
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4                     # so that links may name a heading
mathjax_path = 'vendor/tex-svg.js'           # one file with its fonts: no other host is asked
mathjax3_config = {'options': {'enableMenu': False}}

html_theme = 'sphinx_book_theme'
html_title = project
html_favicon = str(HERE/'static/favicon.svg')
html_static_path = [str(HERE/'static'), str(HERE.parent/'build/site-assets')]
html_css_files = ['site.css']
html_copy_source = html_show_sourcelink = False
html_theme_options = dict(
    repository_url=cfg['git_url'], use_repository_button=True, use_download_button=False,
    show_toc_level=2, show_navbar_depth=1, max_navbar_depth=2, home_page_in_toc=True)

KNOWN = pages.definitions()
EVERYWHERE = pages.everywhere(KNOWN)


def link_names(app, pagename, templatename, context, doctree):
    path = pages.NBS/f'{pagename}.ipynb'
    if not context.get('body') or not path.exists(): return
    scope = pages.in_scope(path, KNOWN)
    context['body'] = pages.linked(context['body'], pagename, scope, EVERYWHERE)


def setup(app): app.connect('html-page-context', link_names)
