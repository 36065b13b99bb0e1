package podspec

import "strings"

// expand replaces each $(NAME) by what lookup has for NAME. A name that lookup does not have stays as it is written, $$ is
// one $, and so $$(NAME) is the text $(NAME).
// (https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/)
func expand(text string, lookup func(name string) (string, bool)) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(text, '$')
		if i < 0 || i+1 == len(text) {
			b.WriteString(text)
			return b.String()
		}
		b.WriteString(text[:i])
		text = text[i+1:]
		switch text[0] {
		case '$':
			b.WriteByte('$')
			text = text[1:]
		case '(':
			end := strings.IndexByte(text, ')')
			if end < 0 {
				// Nothing is skipped: a reference may start within.
				b.WriteString("$(")
				text = text[1:]
				continue
			}
			if value, ok := lookup(text[1:end]); ok {
				b.WriteString(value)
			} else {
				b.WriteString("$" + text[:end+1])
			}
			text = text[end+1:]
		default:
			// Whatever follows is taken as it is.
			b.WriteString("$" + text[:1])
			text = text[1:]
		}
	}
}

// expandAll is expand for each; nil stays nil.
func expandAll(texts []string, lookup func(name string) (string, bool)) []string {
	if texts == nil {
		return nil
	}
	expanded := make([]string, len(texts))
	for i, text := range texts {
		expanded[i] = expand(text, lookup)
	}
	return expanded
}
