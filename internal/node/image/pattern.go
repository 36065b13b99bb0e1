package image

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// wildcards are the characters of a pattern that stand for others.
const wildcards = "*?"

// maxPattern is a bound on the length of a name in a table; a repository's name has at most 255 characters, a tag 128 and a
// digest 135 (sha512).
const maxPattern = 600

// every is the pattern of all images.
const every = "**"

// patternText is what a pattern may consist of: the characters of references, and wildcards.
var patternText = regexp.MustCompile(`^[A-Za-z0-9._/:@*?+=\[\]-]+$`)

// pattern is a name with wildcards, in its long form.
type pattern struct {
	text       string
	repository *regexp.Regexp
	tag        *regexp.Regexp // nil = any, or none
	digest     *regexp.Regexp // nil = any, or none
	weight     int            // the greater one wins
}

// exactWeight puts a name without wildcards before every one with.
const exactWeight = 1 << 20

func parsePattern(text string) (pattern, error) {
	switch {
	case text == "":
		return pattern{}, errors.New("the name is empty")
	case len(text) > maxPattern:
		return pattern{}, fmt.Errorf("the name has %d characters, of %d at most", len(text), maxPattern)
	case text == every:
		return pattern{text: every, repository: glob(every)}, nil
	case !strings.ContainsAny(text, wildcards):
		name, err := parseName(text)
		if err != nil {
			return pattern{}, err
		}
		p := compile(name)
		p.weight += exactWeight
		return p, nil
	}
	if !patternText.MatchString(text) || strings.ContainsAny(text, "[]") {
		return pattern{}, errors.New("only letters, digits, . _ - / : @ + = and the wildcards ? * ** may be in it")
	}
	rest, digest, digested := strings.Cut(text, "@")
	var name imageName
	name.digest = digest
	name.repository = rest
	colon := strings.LastIndexByte(rest, ':')
	tagged := colon > strings.LastIndexByte(rest, '/')
	if tagged {
		name.repository, name.tag = rest[:colon], rest[colon+1:]
	}
	if name.repository == "" || tagged && name.tag == "" || digested && digest == "" {
		return pattern{}, errors.New("a part of it is empty; it is REPOSITORY[:TAG][@DIGEST]")
	}
	if !tagged && !digested {
		name.tag = "latest"
	}
	if strings.HasPrefix(name.repository, every) {
		return compile(name), lowerCase(name.repository)
	}
	name.repository = longRepository(name.repository)
	_, path, _ := strings.Cut(name.repository, "/")
	return compile(name), lowerCase(path)
}

// lowerCase refuses what the path of no repository has.
func lowerCase(path string) error {
	if path != strings.ToLower(path) {
		return errors.New("the name of a repository has no upper-case letters; write it in lower case")
	}
	return nil
}

// longRepository puts in front of a repository's name what a container engine would: the registry docker.io and, for
// official images, library.
func longRepository(name string) string {
	first, _, several := strings.Cut(name, "/")
	switch {
	case !several:
		return "docker.io/library/" + name
	case strings.ContainsAny(first, ".:") || first == "localhost":
		return name
	}
	return "docker.io/" + name
}

func compile(name imageName) pattern {
	p := pattern{repository: glob(name.repository)}
	p.text = name.repository
	if name.tag != "" {
		p.text += ":" + name.tag
		// A digest alone names no tag, and a * means whatever there is.
		p.tag = glob(name.tag)
	}
	if name.digest != "" {
		p.text += "@" + name.digest
		p.digest = glob(name.digest)
	}
	p.weight = len(p.text) - strings.Count(p.text, "*") - strings.Count(p.text, "?")
	return p
}

// glob is an expression for the wildcards. Package regexp matches in time linear in the text, whatever the pattern.
func glob(text string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`\A(?:`)
	for i := 0; i < len(text); i++ {
		switch {
		case strings.HasPrefix(text[i:], every):
			b.WriteString(`.*`)
			for i+1 < len(text) && text[i+1] == '*' {
				i++
			}
		case text[i] == '*':
			b.WriteString(`[^/]*`)
		case text[i] == '?':
			b.WriteString(`[^/]`)
		default:
			b.WriteString(regexp.QuoteMeta(text[i : i+1]))
		}
	}
	b.WriteString(`)\z`)
	return regexp.MustCompile(b.String())
}

func (p pattern) matches(name imageName) bool {
	return p.repository.MatchString(name.repository) &&
		(p.tag == nil || p.tag.MatchString(name.tag)) &&
		(p.digest == nil || name.digest != "" && p.digest.MatchString(name.digest))
}

// String is the pattern in its long form.
func (p pattern) String() string { return p.text }
